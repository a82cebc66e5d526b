"""The compared methods, one file each. This module imports none of them, and no library.

To add a method to the project, write a file in this package and add a line to `METHODS`. A method of another
package needs no line: a sweep file names it as `method: my_package.my_module:MyMethod`.
"""

METHODS = {
    "zero_shot": "methods.zero_shot:ZeroShot",
    "clip": "methods.clip:Clip",
    "triplet": "methods.triplet:Triplet",
    "small_loss": "methods.small_loss:SmallLoss",
    "oracle": "methods.oracle:Oracle",
    "npc": "methods.npc:NPC",
    "ncr": "methods.ncr:NCR",
    "mscn": "methods.mscn:MSCN",
    "clip_clean": "methods.clip_clean:ClipClean",
}
"""`module:class` of each method by its name in sweep files."""
