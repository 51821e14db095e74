"""Objectives that were published after RLAD."""
