"""MGC, Multi-Grained Contrast (Shen, Chen, Wang; arXiv 2407.02014): the same place in two crops, at several grains.

Grains: patch, region and instance. The L x L token map of a view is averaged over windows of c x c tokens: window 1 is
the patch grain, L the whole view (instance), anything between a region. The crops' boxes tell which cells of two views
show the same place of the image, and by how much. Those pairs are contrasted, each pair against all others.

Equations. Online network f with projector g_c and predictor h_c per window, momentum network f', g'_c. For views 1, 2:

    pairs      K_c per image and window, with cells n, m and weight w = |n and m| / (|n| + |m|), areas in the source
    q_r        = unit(h_c(g_c(mean of f(x_1) over cell n)));   z_r = unit(g'_c(mean of f'(x_2) over cell m)) is fixed
    l_r        = -log( exp(q_r.z_r / t) / sum_{r'} exp(q_r.z_r' / t) ),   r, r' over the pairs of the global batch
    L_c(1->2)  = sum_r w_r l_r / sum_r w_r,   and L_c(2->1) likewise with the views' roles exchanged
    L          = sum_c K_c (L_c(1->2) + L_c(2->1)) / sum_c K_c

A grain's term is its windows' part of that sum, so chance level is 2 ln(B K) for B images and one window. Each view is
one forward pass: batch norm is per view. xi <- m xi + (1 - m) theta opens each step, for parameters only; m rises to 1
on a cosine. The momentum network has no drop path; weight decay is on all parameters. No term trains a transformer's
class token, so evaluate its tokens, not a class-token `pooled`.

Deviations (sections of the specification in brackets). Described: in figure and abstract; the rest was not readable.
* Described against released: the weights w in the mean, which cancel in the release, where they only choose the pairs
  [6]; momentum weights that start as a copy, where the release draws all linear layers anew [3.3]; strides in whole
  numbers, where the release rounds in float32 [5]. Both give NaN in a step where no image has a pair.
* Reconstructed: the grain instance (window L), which the code does not run; windows, pairs and strides for maps of
  other sides than 14, after [10]; the ablations of [9].
* Areas are whole numbers here: no overlap is a rounding error, as it can be in the release [5], and ties have a rule.

Measured (reports/table1.pdf): Fashion-MNIST linear 84.2 ± 0.3, Animal-MNIST linear 91.2 ± 0.5.
Legend: B images of this process, L side of the token map, N cells of a level, K pairs, R = B K rows, D width.
"""

import math
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from polygrain.backbones.contract import Backbone
from polygrain.backbones.droppath import DropPath
from polygrain.nn import ema, graph
from polygrain.nn.clock import Clock
from polygrain.nn.correspond import Pairs, Stride, correspond, repeats
from polygrain.nn.distributed import gather_rows, mean_over_processes, sum_over_processes, world
from polygrain.nn.heads import Head
from polygrain.nn.linear import linear_map
from polygrain.nn.monitors import feature_monitors
from polygrain.nn.parts import cell_means
from polygrain.nn.phases import phase
from polygrain.nn.random import hash64
from polygrain.nn.schedules import cosine
from polygrain.provenance.errors import UserError
from polygrain.views.batch import Batch


def pair_losses(q_RD: Tensor, z_SD: Tensor, temperature: float, *, first: int = 0) -> Tensor:
    """InfoNCE [R] of unit-scaled queries; the target of row r is `first` + r, without gradient; chance gives ln S."""
    logits_RS = linear_map(normalize(q_RD, dim=1), normalize(z_SD.detach(), dim=1)) / temperature
    return cross_entropy(logits_RS, first + torch.arange(len(q_RD), device=q_RD.device), reduction="none")


def mean_over_rows(loss_R: Tensor, weight_R: Tensor, weighting: Literal["overlap", "none"]) -> Tensor:
    """Average the rows of all processes, weighted or not; NaN in both cases where all weights are 0."""
    weight_R = weight_R.to(loss_R)
    total = sum_over_processes(weight_R.sum())
    if weighting == "overlap":
        return sum_over_processes((weight_R * loss_R).sum()) / total
    return mean_over_processes(loss_R.mean()) * (total / total)


class Level(NamedTuple):
    """One window size: side in tokens, K, and how sparsely the cells of view 1 are visited."""

    window: int
    pairs: int
    row_stride: Stride
    column_stride: Stride


class MGC(nn.Module):
    """Online and momentum network with heads per window.

    backbone: the network that is evaluated, with a square token map.
    windows, pairs: per window its side c in tokens, a divisor of the map's side, and K_c.
    row_strides, column_strides: per window [a, low, high]: only every s-th row (column) of view 1's cells is used, with
    s = a IoU rounded down, clipped to low..high. stride_rounding: whole numbers, or the release's float32 expression.
    selection: the pairs of largest weight, or random ones. level_weights: windows count by K, or equally.
    weighting: pairs count by overlap, or all equally, empty slots included.
    temperature: t. momentum, momentum_end: m at the first step and after the last; both 0: equal weights.
    ema_init: momentum weights start as a copy, or with linear layers drawn anew.
    hidden, embedding: widths of the heads. shared_heads: one set for all windows. predictor: whether there is h.

    Raises UserError for lists that do not fit each other, and in `forward` for windows that do not fit the map.
    """

    encoder_name = "backbone."
    uses_labels = False

    def __init__(
        self,
        backbone: Backbone,
        *,
        windows: list[int],
        pairs: list[int],
        row_strides: list[tuple[int, int, int]],
        column_strides: list[tuple[int, int, int]],
        stride_rounding: Literal["exact", "float32"],
        selection: Literal["overlap", "random"],
        weighting: Literal["overlap", "none"],
        level_weights: Literal["pairs", "equal"],
        temperature: float,
        momentum: float,
        momentum_end: float,
        ema_init: Literal["copy", "independent"],
        hidden: int,
        embedding: int,
        shared_heads: bool,
        predictor: bool,
    ) -> None:
        super().__init__()
        self.levels = _levels(windows, pairs, row_strides, column_strides)
        self.backbone = backbone
        self.names = ["shared" if shared_heads else str(level.window) for level in self.levels]
        self.projectors, self.predictors = nn.ModuleDict(), nn.ModuleDict()
        for name in dict.fromkeys(self.names):
            self.projectors[name] = _head(backbone.width, hidden, embedding, layers=3)
            self.predictors[name] = _head(embedding, hidden, embedding, layers=2) if predictor else nn.Identity()
        self.momentum_backbone = cast(Backbone, ema.frozen_copy(backbone))
        self.momentum_projectors = cast(nn.ModuleDict, ema.frozen_copy(self.projectors))
        if ema_init == "independent":
            _draw_linear(self.momentum_backbone)
            _draw_linear(self.momentum_projectors)
        for part in self.momentum_backbone.modules():
            if isinstance(part, DropPath):
                part.rate = 0.0
        self.stride_rounding, self.selection, self.weighting = stride_rounding, selection, weighting
        counts = [level.pairs if level_weights == "pairs" else 1 for level in self.levels]
        self.shares = [count / sum(counts) for count in counts]
        self.temperature, self.momentum, self.momentum_end = temperature, momentum, momentum_end

    def views(self, clock: Clock) -> tuple[str, ...]:
        """Ask for two crops that overlap."""
        return ("anchor", "overlapping")

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Train the online network and its heads, with weight decay on every parameter [7]."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [{"params": trained, "name": "decayed", "decay": True}]

    def before_step(self, clock: Clock) -> None:
        """Update the momentum network's parameters from the online ones."""
        momentum = cosine(self.momentum, self.momentum_end, clock.step, clock.steps)
        ema.update(self.momentum_backbone, self.backbone, momentum)
        ema.update(self.momentum_projectors, self.projectors, momentum)

    def forward(self, batch: Batch, clock: Clock) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compute each grain's term over the global batch.

        Monitors: `spread`, `rank` of view 1; `purity`, how often its nearest neighbour in the batch has its class; for
        each window c `padded_c`, the share of slots without a pair; of the other slots `weight_c`, the mean weight, and
        `repeated_c`, the share whose cell of view 1 is also in an earlier pair.
        """
        online = [self.backbone(view) for view in batch.views]
        with torch.no_grad():
            targets = [self.momentum_backbone(view).tokens for view in batch.views]
        tokens = [encoded.tokens for encoded in online]
        side = self._side(tokens[0].shape[1])
        losses = dict[str, Tensor]()
        with phase("rest"):
            monitors = _feature_monitors(online[0].pooled, batch.labels_for_monitoring)
        for level, name, share in zip(self.levels, self.names, self.shares, strict=True):
            with phase("rest"):
                found = self._pairs(level, side // level.window, batch, clock)
                monitors |= _pair_monitors(found, level.window)
            term = share * self._symmetric_loss(level, name, side, tokens, targets, found)
            grain = "instance" if level.window == side else "patch" if level.window == 1 else "region"
            losses[grain] = losses[grain] + term if grain in losses else term
        return losses, monitors

    def _side(self, tokens: int) -> int:
        side = math.isqrt(tokens)
        windows = [level.window for level in self.levels]
        if side * side != tokens or any(side % window for window in windows):
            fits = [window for window in range(1, side + 1) if side % window == 0]
            raise UserError(f"method.values.windows {windows} do not tile a map of {tokens} tokens; choose from {fits}")
        return side

    def _pairs(self, level: Level, cells: int, batch: Batch, clock: Clock) -> Pairs:
        lottery_BP = None
        if self.selection == "random":
            pair_P = torch.arange(cells**4, device=batch.indices.device)
            draws = hash64(clock.seed, clock.step, "pairs", level.window, batch.indices[:, None], pair_P)
            lottery_BP = draws & (2**31 - 1)
        first, second = batch.geometry
        return correspond(
            (first.box, second.box),
            (first.flip, second.flip),
            cells,
            level.pairs,
            row_stride=level.row_stride,
            column_stride=level.column_stride,
            rounding=self.stride_rounding,
            lottery_BP=lottery_BP,
        )

    def _symmetric_loss(
        self, level: Level, name: str, side: int, online: list[Tensor], targets: list[Tensor], found: Pairs
    ) -> Tensor:
        chosen = (found.cell_1, found.cell_2)
        project, predict, project_targets = (
            heads[name] for heads in (self.projectors, self.predictors, self.momentum_projectors)
        )
        q_1_RD, q_2_RD = (
            predict(project(_rows(cell_means(tokens, side, level.window), cell_BK)))
            for tokens, cell_BK in zip(online, chosen, strict=True)
        )
        with torch.no_grad():
            z_1_SD, z_2_SD = (
                gather_rows(project_targets(_rows(cell_means(tokens, side, level.window), cell_BK)))
                for tokens, cell_BK in zip(targets, chosen, strict=True)
            )
        first, weight_R = world()[0] * len(q_1_RD), found.weight.flatten()
        one_way, other_way = (
            mean_over_rows(pair_losses(q_RD, z_SD, self.temperature, first=first), weight_R, self.weighting)
            for q_RD, z_SD in ((q_1_RD, z_2_SD), (q_2_RD, z_1_SD))
        )
        return one_way + other_way


def _levels(
    windows: list[int],
    pairs: list[int],
    row_strides: list[tuple[int, int, int]],
    column_strides: list[tuple[int, int, int]],
) -> list[Level]:
    if not windows or not len(windows) == len(set(windows)) == len(pairs) == len(row_strides) == len(column_strides):
        raise UserError(f"method.values: windows {windows} must differ; pairs and both strides need one entry for each")
    rules = [Stride(*rule) for rule in (*row_strides, *column_strides)]
    if min(*windows, *pairs) < 1 or any(not 1 <= rule.least <= rule.most for rule in rules):
        raise UserError("method.values: windows and pairs must be at least 1, strides [a, low, high] 1 <= low <= high")
    return [Level(*level) for level in zip(windows, pairs, rules[: len(windows)], rules[len(windows) :], strict=True)]


def _head(inputs: int, hidden: int, outputs: int, *, layers: int) -> Head:
    head = Head(inputs, hidden, outputs, layers=layers, bias=False, final_bias=False, final_norm="batch")
    _draw_linear(head)
    return head


def _draw_linear(network: nn.Module) -> None:
    """Draw all linear weights from a normal distribution of std 0.02, truncated at +-2 [3.1]."""
    for part in network.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)


def _rows(cells_BND: Tensor, cell_BK: Tensor) -> Tensor:
    """The chosen cells of every image, [B K, D]."""
    return cells_BND.gather(1, cell_BK[:, :, None].expand(-1, -1, cells_BND.shape[2])).flatten(0, 1)


@torch.no_grad()
def _feature_monitors(pooled_BD: Tensor, labels_B: Tensor) -> dict[str, Tensor]:
    nearest_B = graph.nearest_neighbour(gather_rows(pooled_BD.detach()))
    purity, _ = graph.purity(graph.links(nearest_B[:, None], len(nearest_B)), gather_rows(labels_B))
    return feature_monitors(pooled_BD) | {"purity": purity}


@torch.no_grad()
def _pair_monitors(found: Pairs, window: int) -> dict[str, Tensor]:
    kept_BK = found.weight > 0
    sums = torch.stack([kept_BK.double().sum(), found.weight.sum(), repeats(found).double().sum()])
    kept, weight, repeated = sum_over_processes(sums).unbind()
    return {
        f"padded_{window}": 1.0 - kept / (kept_BK.numel() * world()[1]),
        f"weight_{window}": weight / kept.clamp(min=1),
        f"repeated_{window}": repeated / kept.clamp(min=1),
    }


METHOD = MGC
