from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_component_is_in_the_catalogue():
    text = (ROOT / "docs/hardware.md").read_text()
    named = {name for name in (p.name for p in (ROOT / "hw").glob("*.py")) if f"`{name}`" in text}
    assert named | {"__init__.py"} == {p.name for p in (ROOT / "hw").glob("*.py")}
