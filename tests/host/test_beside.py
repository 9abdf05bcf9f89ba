"""What `nox -s neighbours -- FOLDER --with ...` puts beside a pack changes the picture, else it would test nothing."""

import pytest
from neighbours.beside import THINGS, applies, beside
from neighbours.measuring import scene_of
from neighbours.models import FAMILIES
from neighbours.setting_up import nothing

from .runs import relative_error


@pytest.mark.parametrize(("family", "thing"), [(family, thing) for family in ("SD 1.5", "Flux", "Wan")
                                               for thing in THINGS if applies(thing, family)])
def test_each_changes_the_picture(family, thing):
    without, with_it = (scene_of(FAMILIES[family], set_up, 5.0, 1)
                        for set_up in (nothing, beside(thing, family, nothing)))
    if thing == "windows":
        without.latent = with_it.latent  # it is longer
    # In windows over images, which know nothing of each other, only the calls are others.
    is_other = thing != "windows" or family == "Wan"
    assert (relative_error(with_it.sample(), without.sample()) > 1e-3) == is_other
