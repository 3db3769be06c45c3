"""`moxin-lab bench towers`: images per second through our frozen vision towers, beside plain timm
and open_clip calls in the same run.

    moxin-lab bench towers --device cuda --json FILE

Ours is `Towers.features`: both towers up to their second-to-last block, concatenated. The peer is
what one would write first with the libraries: `get_intermediate_layers` of timm's DINOv2 and of the
trunk inside an open_clip SigLIP (timm's at tiny width, which open_clip does not have), which run
every block, and a concatenation. `largest_difference` is that of the two outputs on the batch.

Guarantees: the same weights, batch and dtype; the rows are timed in turns, so that the load of
other processes affects both.
Out of scope: decoding and normalising images.
"""

import argparse
from typing import Any

from moxin_lab.bench.keeping import Keep, keeping


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--width",
        default="full",
        choices=("tiny", "full"),
        help="size of the towers (default full)",
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)


@keeping("towers")
def run(options: argparse.Namespace, keep: Keep) -> dict[str, Any]:
    """Rows: implementation, images_per_second, ms, ratio (speed relative to the plain calls),
    largest_difference.
    """
    import statistics

    import torch

    from moxin_lab.bench import median_seconds
    from moxin_lab.scales.sections import TowerSettings
    from moxin_lab.vision.towers import build_towers

    narrow = {"embed_dim": 96, "depth": 5, "num_heads": 4, "patch_size": 16}
    settings = TowerSettings()
    if options.width == "tiny":
        settings = TowerSettings(image_size=64, dino_shape=narrow, siglip_shape=narrow)
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    towers = build_towers(settings).to(options.device, dtype)
    dino, siglip, peer = towers.dino, towers.siglip, "timm get_intermediate_layers"
    if options.width == "full":
        import open_clip

        clip = open_clip.create_model("ViT-SO400M-14-SigLIP").to(options.device, dtype).eval()
        clip.visual.trunk.load_state_dict(siglip.state_dict())
        siglip, peer = clip.visual.trunk, "timm and open_clip get_intermediate_layers"
    shape = (options.batch, 3, settings.image_size, settings.image_size)
    pixels: dict[str, torch.Tensor] = {
        name: torch.randn(shape, device=options.device, dtype=dtype) for name in towers.names
    }

    def plain() -> Any:
        parts = [
            tower.get_intermediate_layers(pixels[name], n={len(tower.blocks) - 2})[0]
            for name, tower in (("dino", dino), ("siglip", siglip))
        ]
        return torch.cat(parts, dim=2)

    calls = {"ours": lambda: towers.features(pixels), peer: plain}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    result = {"width": options.width, "batch": options.batch, "dtype": str(dtype)}
    with torch.inference_mode():
        difference = float((calls["ours"]() - plain()).abs().max())
        for _ in range(options.repeats):
            for name, call in calls.items():
                seconds[name].append(
                    median_seconds(call, device=options.device, warmup=1, repeats=3)
                )
            medians = {name: statistics.median(values) for name, values in seconds.items()}
            result["rows"] = [
                {
                    "implementation": name,
                    "images_per_second": options.batch / value,
                    "ms": value * 1000,
                    "ratio": medians[peer] / value,
                    "largest_difference": difference,
                }
                for name, value in medians.items()
            ]
            keep(result)  # medians of the turns so far
    return result
