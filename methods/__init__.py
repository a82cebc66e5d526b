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
    "rcl": "methods.rcl:RCL",
    "rince": "methods.rince:RINCE",
    "tal": "methods.tal:TAL",
    "siglip": "methods.siglip:SigLIP",
    "cyclip": "methods.cyclip:CyCLIP",
    "infonce": "methods.cross_entropies:InfoNCE",
    "sce": "methods.cross_entropies:SymmetricCrossEntropy",
    "gce": "methods.cross_entropies:GeneralizedCrossEntropy",
    "label_smoothing": "methods.cross_entropies:LabelSmoothing",
    "crcl": "methods.crcl:CRCL",
    "gsc": "methods.gsc:GSC",
    "decl": "methods.decl:DECL",
    "bicro": "methods.bicro:BiCro",
    "cream": "methods.cream:CREAM",
    "score_filter": "methods.score_filter:ScoreFilter",
    "lemon": "methods.lemon:LEMoN",
    "osa": "methods.osa:OSA",
    "l2rm": "methods.l2rm:L2RM",
}
"""`module:class` of each method by its name in sweep files."""

FAMILIES = (
    "loss",  # by the loss of a batch alone
    "weighting",  # weights of pairs
    "label refinement",  # labels or partners other than those given
    "co-teaching",  # what another network believes
    "filter",  # pairs are left out
    "clean data",
    "other",
    "reference",  # knows the truth, or trains nothing
)
"""How methods deal with mismatched pairs (`Method.family`), in the order in which reports list them."""
