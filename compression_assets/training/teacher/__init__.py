"""The teacher's next-token distributions: computed once, stored, and read by every distillation step."""
