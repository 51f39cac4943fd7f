"""Pictures of every page in every state, from a throw-away instance: LANGUAGE-WIDTH-STATE.png."""

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

import structlog

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from estserver.model import Language  # noqa: E402 - the tests are no installed package
from tests.browsers.chromium import Chromium  # noqa: E402 - see above
from tests.browsers.gallery import TOML, Gallery  # noqa: E402 - see above
from tests.live import Workshop, make_template  # noqa: E402 - see above

WIDTHS = {1280: 900, 360: 740}
"""Width and height of a window: a desk and a telephone."""


def photograph(folder: Path, *, languages: list[Language], dark: bool) -> int:
    """Walk through the gallery, save what each page shows, all of it, and count the pictures."""
    count = 0
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        workshop = Workshop(make_template(scratch / "template"))
        live = workshop.make(scratch / "instance", TOML)
        try:
            with Chromium(scratch, live.root) as chromium:
                come = partial(chromium.person, dark=dark)
                for language in languages:
                    for state, page in Gallery(come, live, scratch, language).walk():
                        for width, height in WIDTHS.items():
                            page.set_viewport_size({"width": width, "height": height})
                            path = folder / f"{language.value}-{width}-{state}.png"
                            page.screenshot(path=path, full_page=True)
                            count += 1
        finally:
            workshop.close()
    return count


def main() -> None:
    """Read the command line and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the pictures go; made if it is not there")
    parser.add_argument("--lang", choices=[one.value for one in Language], help="one language only")
    parser.add_argument("--dark", action="store_true", help="with the dark colours")
    given = parser.parse_args()
    # The lines of the instance are not the subject.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    given.folder.mkdir(parents=True, exist_ok=True)
    languages = [Language(given.lang)] if given.lang else list(Language)
    print(photograph(given.folder, languages=languages, dark=given.dark), "pictures")


if __name__ == "__main__":
    main()
