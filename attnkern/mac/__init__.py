"""Multiply-accumulates: counted from a `Problem`, held against what the device can do, and measured in any model.

count(problem, which)               how much work a call is: MACs, bytes, exponentials, random numbers
roofs(device).floor(count, dtype)   the time below which it cannot be done on this device, measured
profile(model, *inputs)             where the time of a model goes, and which share of the roofs it reaches
"""

from attnkern.mac.counting import Count, count, passes
from attnkern.mac.profiling import Profile, profile
from attnkern.mac.roofline import Floor, Roofs, roofs

__all__ = ["Count", "Floor", "Profile", "Roofs", "count", "passes", "profile", "roofs"]
