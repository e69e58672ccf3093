"""Networks: models, their files, their export, and the symmetries of what they see."""
