"""Supervised classification: the control that uses the labels.

Grain: class, given. One view per image, a linear classifier on the pooled feature h, cross-entropy with the label y:
L = mean_i -log softmax(W h_i + b)[y_i].

It shows what the same backbone, budget and augmentation reach when the classes of the pre-training set are known; it is
no upper bound for transfer. The view is "global" as for the other methods. An image costs half of what two-view methods
spend, so at equal compute it is seen twice as often.

Measured (reports/table1.pdf): Fashion-MNIST linear 88.8 ± 0.3, Animal-MNIST linear 83.5 ± 1.1.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from polygrain.backbones.contract import Backbone
from polygrain.nn.clock import Clock
from polygrain.nn.optim import split_by_decay
from polygrain.provenance.errors import UserError
from polygrain.views.batch import Batch


class Supervised(nn.Module):
    """Backbone (the network that is evaluated) and linear classifier.

    classes: of the pre-training set. smoothing: of labels, the share of the target spread evenly over the classes.
    """

    encoder_name = "backbone."
    uses_labels = True

    def __init__(self, backbone: Backbone, *, classes: int, smoothing: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Linear(backbone.width, classes)
        self.smoothing = smoothing

    def views(self, clock: Clock) -> tuple[str, ...]:
        """Ask for one full-size view."""
        return ("global",)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Train everything; biases and norms without weight decay."""
        return split_by_decay(self)

    def forward(self, batch: Batch, clock: Clock) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compute the cross-entropy and the accuracy. Raises UserError for a label that is not below `classes`."""
        labels_B = batch.labels_for_monitoring
        if int(labels_B.max()) >= self.classifier.out_features:
            raise UserError(
                f"method.values.classes is {self.classifier.out_features} but a label is {int(labels_B.max())}; set it"
                " to the number of classes of the data set"
            )
        logits_BC = self.classifier(self.backbone(batch.views[0]).pooled)
        accuracy = (logits_BC.detach().argmax(dim=1) == labels_B).float().mean()
        return {"class": cross_entropy(logits_BC, labels_B, label_smoothing=self.smoothing)}, {"accuracy": accuracy}


METHOD = Supervised
