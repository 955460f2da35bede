"""The options of each domain: typed, validated, standard library only. Values live in conf/domain/."""

from dataclasses import dataclass

from components.contracts import positive, require


@dataclass
class GlyphsOptions:
    """Rendering of the `glyphs` pool. Any change is a new data version."""

    size: int
    items_per_class: int
    min_styles: int
    render_seed: int
    mesh: int
    thickness_percent: int
    scale_percent: int
    shear_percent: int
    shift_tenths: int
    elastic_tenths: int
    fonts: list[str]
    leave_out: list[str]

    def __post_init__(self) -> None:
        require(84 % self.size == 0, f"domain.source.size must divide 84 (the drawing canvas), got {self.size}. Use 28, 42 or 21.")
        require(84 % self.mesh == 0 and self.mesh >= 1, f"domain.source.mesh must divide 84, got {self.mesh}. Use 1, 2, 3 or 4.")
        positive(**{"domain.source.items_per_class": self.items_per_class, "domain.source.min_styles": self.min_styles})
        require(len(self.fonts) >= self.min_styles, f"domain.source.fonts needs min_styles={self.min_styles} fonts, got {len(self.fonts)}.")


@dataclass
class SinusoidOptions:
    """`functions` sine waves, each seen at `points` places."""

    functions: int
    points: int
    seed: int

    def __post_init__(self) -> None:
        positive(**{"domain.source.functions": self.functions, "domain.source.points": self.points})


@dataclass
class OmniglotOptions:
    """Working `size` of a drawing; `evaluation` adds the evaluation archive; `alphabets` keeps those alone (all where empty)."""

    size: int
    evaluation: bool
    alphabets: list[str]

    def __post_init__(self) -> None:
        require(14 <= self.size <= 105, f"domain.source.size must lie in [14, 105], got {self.size}. Use 28, 35 or 105.")


OPTIONS: dict[str, type] = {
    "glyphs": GlyphsOptions,
    "sinusoid": SinusoidOptions,
    **{name: OmniglotOptions for name in ("omniglot", "omniglot-small1", "omniglot-small2", "omniglot-across")},
}
