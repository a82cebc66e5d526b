"""The methods that are compared, one file each. A new one is a file here and a line below.

A method of your own needs no line: `method: my_package.my_module:MyMethod` in a sweep file.
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
