"""KD: knowledge distillation from stored teacher logits."""
