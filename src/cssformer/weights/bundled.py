"""Models that are part of the package: each is a folder of ``cssformer/bundled`` and goes by its name."""

import json
from pathlib import Path
from typing import Any

from cssformer.weights.run_files import SCORES

BUNDLED = Path(__file__).parents[1] / "bundled"


def bundled_models() -> dict[str, Path]:
    """Name -> folder, as :meth:`cssformer.weights.hub.HubModel.from_pretrained` takes either."""
    return {path.parent.name: path.parent for path in sorted(BUNDLED.glob("*/config.json"))}


def describe(folder: Path) -> dict[str, Any]:
    """Classes, mIoU and its 95 % interval (0 to 1), size (MB) and licence of a bundled model, for JSON."""
    config, scores = (json.loads((folder / name).read_text(encoding="utf-8")) for name in ("config.json", SCORES))
    return {
        "classes": config["classes"],
        "miou": scores["miou"],
        "miou_interval": scores["miou_interval"],
        "pictures": scores["pictures"],
        "megabytes": round(sum(path.stat().st_size for path in folder.iterdir()) / 1e6, 1),
        "licence": config["backbone_licence"],
    }
