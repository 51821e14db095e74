"""Commands of `rlad schedule` that control existing schedules."""
