"""Published figures beside ours: ``fedjax-masks claims``."""

from fedjax_masks.claims import adp, baselines, ecofed, fedmask, fedskel, mpfl
from fedjax_masks.claims.claim import Claim
from fedjax_masks.claims.outcomes import summary
from fedjax_masks.claims.table import print_claims

_SYSTEMS = (fedmask, fedskel, mpfl, adp, ecofed, baselines)


def all_claims() -> list[Claim]:
    """The claims of every system.

    Exact figures are counted by the call, which takes about a minute. Figures of long runs are read from
    result files of the package.
    """
    return [claim for system in _SYSTEMS for claim in system.claims()]


__all__ = ["Claim", "all_claims", "print_claims", "summary"]
