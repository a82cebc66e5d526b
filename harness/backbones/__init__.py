"""Backbones. A new one is a file here with a setup class (as `clip.ClipSetup`), and a line in `BACKBONES`."""

BACKBONES = {"clip": "harness.backbones.clip:ClipSetup", "sgraf": "harness.backbones.sgraf:SgrafSetup"}
