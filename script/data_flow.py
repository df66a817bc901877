"""Draws docs/images/data_flow.svg, the picture of docs/architecture.md: ``python script/data_flow.py``."""

from html import escape
from pathlib import Path

PICTURE = Path(__file__).resolve().parents[1] / "docs/images/data_flow.svg"

# lane -> (what happens, where, whether it is a file), from left to right; "" leaves a place free
LANES = {
    "train": [
        ("particles, and a map or known poses", ".star, .mrcs, .mrc", True),
        ("read and check", "particles/dataset, training/inputs", False),
        ("images as the network sees them", "particles/image_preparation", False),
        ("batches: particles, projections", "training/streams, projections", False),
        ("training", "training/loop, losses; model/network", False),
        ("checkpoint/", "model/checkpoint", True),
    ],
    "predict": [
        ("particles", ".star, .mrcs", True),
        ("transforms and CTF", "particles/image_preparation", False),
        ("network: first poses", "model/network", False),
        ("whitening, matching to the map", "matching/whitened_images, matcher", False),
        ("errors and junk labels", "uncertainty/calibration, junk/", False),
        ("particles.star, orientation_posterior.npz", "results/pose_results", True),
    ],
    "select, reconstruct": [
        ("selection", "selection/, junk/view_cones", False),
        ("selected.star, rejected.star", "selection/selection", True),
        ("Fourier inversion, half maps, FSC", "reconstruction/reconstruct", False),
        ("map.mrc, fsc.csv", "reconstruction/, imaging/resolution", True),
    ],
    "ab initio": [
        ("particles", ".star, .mrcs", True),
        ("random starts", "stages/search; matching/stochastic", False),
        ("half sets refined", "stages/half_maps", False),
        ("network, end to end", "stages/network; training/", False),
        ("final matching, errors, junk", "stages/final_matching", False),
        ("map, poses, checkpoint/", "stages/maps", True),
    ],
}
# (lane, place) -> (lane, place): what one job leaves for another
HANDED_ON = [(("train", 5), ("predict", 2)), (("predict", 5), ("select, reconstruct", 0)),
             (("ab initio", 5), ("select, reconstruct", 0))]

BOX_WIDTH, BOX_HEIGHT, STEP_X, STEP_Y, LEFT, TOP = 204, 62, 228, 122, 16, 40
WIDTH, HEIGHT = LEFT + 5 * STEP_X + BOX_WIDTH + 16, TOP + 3 * STEP_Y + BOX_HEIGHT + 16
FILE_FILL, STEP_FILL, LINE = "#eef3f8", "#ffffff", "#39556f"


def place(lane: str, column: int) -> tuple[int, int]:
    """Upper left corner of a box."""
    return LEFT + column * STEP_X, TOP + list(LANES).index(lane) * STEP_Y


def two_lines(text: str, longest: int = 28) -> list[str]:
    """The text, broken at a blank where it is too long for a box."""
    if len(text) <= longest:
        return [text]
    cut = text.rfind(" ", 0, longest + 1)
    return [text[:cut], text[cut + 1:]]


def box(lane: str, column: int, title: str, where: str, is_file: bool) -> str:
    x, y = place(lane, column)
    parts = [f'<rect x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="{12 if is_file else 2}" '
             f'fill="{FILE_FILL if is_file else STEP_FILL}" stroke="{LINE}"/>']
    lines = two_lines(title)
    for number, line in enumerate(lines):
        parts.append(f'<text x="{x + BOX_WIDTH / 2}" y="{y + (19 if len(lines) == 2 else 27) + 15 * number}" '
                     f'font-size="13">{escape(line)}</text>')
    parts.append(f'<text x="{x + BOX_WIDTH / 2}" y="{y + 53}" font-size="10.5" fill="#5b6b7a">{escape(where)}</text>')
    return "".join(parts)


def arrow(points: list[tuple[float, float]]) -> str:
    path = " ".join(f"{x},{y}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{LINE}" marker-end="url(#head)"/>'


def handed_on(source: tuple[str, int], target: tuple[str, int]) -> str:
    """From box to box through the gap between two lanes."""
    (x, y), (to_x, to_y) = place(*source), place(*target)
    goes_down = to_y > y
    start, end = (y + BOX_HEIGHT, to_y) if goes_down else (y, to_y + BOX_HEIGHT)
    # the name of a lane stands above its boxes, at the left: the arrow arrives at their right
    middle = (start + end) / 2 - 6
    x, to_x = x + BOX_WIDTH / 2, to_x + 0.88 * BOX_WIDTH
    return arrow([(x, start), (x, middle), (to_x, middle), (to_x, end)])


def svg() -> str:
    parts = []
    for lane, boxes in LANES.items():
        x, y = place(lane, 0)
        parts.append(f'<text x="{x}" y="{y - 9}" font-size="14" font-weight="bold" text-anchor="start">{lane}</text>')
        for column, (title, where, is_file) in enumerate(boxes):
            parts.append(box(lane, column, title, where, is_file))
            if column:
                x, y = place(lane, column)
                parts.append(arrow([(x - STEP_X + BOX_WIDTH, y + BOX_HEIGHT / 2), (x - 1, y + BOX_HEIGHT / 2)]))
    parts += [handed_on(*pair) for pair in HANDED_ON]
    body = "\n".join(parts)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"
 font-family="Helvetica, Arial, sans-serif" text-anchor="middle" fill="#1c2b39">
<defs><marker id="head" markerWidth="9" markerHeight="8" refX="8" refY="4" orient="auto">
<path d="M0,0 L9,4 L0,8 z" fill="{LINE}"/></marker></defs>
<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>
{body}
</svg>
"""


if __name__ == "__main__":
    PICTURE.write_text(svg())
