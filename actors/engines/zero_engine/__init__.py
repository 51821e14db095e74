"""DeepSpeed ZeRO trainer of the student."""
