"""Published architectures as configs; `model.build('gpt2:124m')` takes their names."""
