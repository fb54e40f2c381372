"""From packed data sets to scenes and clips with exact annotations, in three layouts, and a manifest.

Every scene is a pure function of (seed, split, number), and every byte is written by writers of our own.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from polygrain.data.packed import MANIFEST, open_packed
from polygrain.data.scenes.clips import clip
from polygrain.data.scenes.compose import Setting, annotated, scene, textures_of
from polygrain.data.scenes.layouts import Coco, Davis, Voc
from polygrain.data.scenes.sources import Sources
from polygrain.data.scenes.stored import StoredZip
from polygrain.provenance.files import atomic_path, canonical_json, sha256_file, write_text

if TYPE_CHECKING:  # types and what a stage says of itself decide no output: they stay out of the code hash
    from polygrain.config.typed import Scenes
    from polygrain.provenance.stage import Stage

FORMAT = 1
LAYOUTS = ("coco.zip", "voc.zip", "davis.zip")
SPLITS = ("train", "validation", "test")


def run(stage: "Stage") -> None:
    """Do the compose stage. Raises UserError as `compose` does."""
    config = cast("Scenes", stage.config)
    folders = {name: stage.directory.parent / name for name in config["datasets"]}
    compose(config, folders, stage.directory)


def compose(config: "Scenes", folders: Mapping[str, Path], out: Path) -> None:
    """Write the three archives and then the manifest into `out`. folders: packed data set -> where it lies.

    Raises UserError for a packed data set that is missing, damaged, in colour, or without a class in a split.
    """
    sources = Sources({name: open_packed(folder) for name, folder in folders.items()})
    setting = Setting(
        seed=config["seed"],
        side=config["side"],
        objects=(config["objects"][0], config["objects"][1]),
        distractors=(config["distractors"][0], config["distractors"][1]),
        extent=(config["extent"][0], config["extent"][1]),
        parts=config["parts"],
        textures=config["textures"],
    )
    with ExitStack() as stack:
        coco, voc, davis = (
            stack.enter_context(StoredZip(stack.enter_context(atomic_path(out / name)))) for name in LAYOUTS
        )
        images, masks = Coco(coco, sources.categories), Voc(voc, sources.categories, setting.parts)
        tracks, first = Davis(davis, sources.categories, sources.keypoints), 1
        for split in SPLITS:
            canvases = textures_of(setting, split)
            for number in range(config["scenes"][split]):
                made = scene(setting, sources, canvases, split, number)
                objects = annotated(made.painted, made.things, sources.keypoints)
                images.add(split, first + number, made, objects)
                masks.add(split, first + number, made, objects)
            first += config["scenes"][split]
            for number in range(config["clips"][split]):
                tracks.add(split, clip(setting, sources, canvases, split, number, config["frames"]))
            images.finish(split)
            masks.finish(split)
            tracks.finish(split)
        tracks.close()
    write_text(out / MANIFEST, canonical_json(manifest(config, sources, folders, out)))


def manifest(config: "Scenes", sources: Sources, folders: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """What the archives are and come from."""
    files = {name: out / name for name in LAYOUTS}
    return {
        "format": FORMAT,
        "kind": "scenes",
        "name": config["name"],
        "side": config["side"],
        "classes": [one.name for one in sources.categories],
        "keypoints": {
            one.name: cells.tolist() for one, cells in zip(sources.categories, sources.keypoints, strict=True)
        },
        "scenes": config["scenes"],
        "clips": config["clips"],
        "files": {name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)} for name, path in files.items()},
        "sources": {name: sha256_file(folder / MANIFEST) for name, folder in folders.items()},
        "licence": "that of the data sets under `sources`",
    }
