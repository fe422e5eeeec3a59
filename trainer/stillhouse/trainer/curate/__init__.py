"""Curation: pure, ordered, accounted for. `pipeline.curate` runs the stages; each stage is a file of its own."""
