"""What the research nodes need of the host: gradients through a model, posterior sampling, score distillation, head search."""
