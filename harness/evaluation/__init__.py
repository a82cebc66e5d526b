"""Retrieval recalls, MS-COCO's measures and noise-detection scores. numpy alone at import."""
