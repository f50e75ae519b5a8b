"""The main job: stages in a run folder, each of which goes on from what is there."""
