"""The picture of a run's losses: text and captions, trained and held out, with the step at which pictures enter."""

from __future__ import annotations

from pathlib import Path


def _smooth(steps: list[int], values: list[float], width: int = 9) -> tuple[list[int], list[float]]:
    """Running mean over `width` steps."""
    half = width // 2
    means = []
    for place in range(len(values)):
        window = values[max(0, place - half) : place + half + 1]
        means.append(sum(window) / len(window))
    return steps, means


def draw_losses(records: list[dict], entry: int, folder: Path) -> Path:
    """Write `losses.png` into `folder`; returns its path."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    train = [r for r in records if r["kind"] == "train"]
    held_out = [r for r in records if r["kind"] == "eval"]
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    colours = {"text": "#1f4e79", "caption": "#c55a11"}
    for modality, colour in colours.items():
        points = [(r["step"], r["losses"][modality]) for r in train if modality in r["losses"]]
        if points:
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, color=colour, alpha=0.2, linewidth=0.8)
            axes.plot(*_smooth(list(steps), list(values)), color=colour, linewidth=1.6, label=f"{modality}, trained")
    marks = {"unread": ("o", "#1f4e79"), "new_style": ("s", "#c55a11"), "new_concepts": ("^", "#7f6000")}
    for name in held_out[0]["losses"] if held_out else []:
        marker, colour = marks.get(name, ("x", "grey"))
        steps = [r["step"] for r in held_out]
        label = f"{name.replace('_', ' ')}, held out"
        axes.plot(
            steps, [r["losses"][name] for r in held_out], marker=marker, color=colour, linewidth=0.8, ls="--", label=label
        )
    axes.axvline(entry, color="grey", linewidth=1)
    axes.annotate(
        "pictures enter", (entry, 1.0), xycoords=("data", "axes fraction"), xytext=(4, -12), textcoords="offset points"
    )
    axes.set(xlabel="step", ylabel="loss, nats a token", ylim=(0, None), xlim=(0, None))
    axes.grid(alpha=0.25)
    axes.legend(loc="lower left", fontsize=8)
    path = folder / "losses.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path
