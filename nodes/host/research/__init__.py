"""What research nodes need of the host: gradients through a model, posterior sampling, distillation, head search."""
