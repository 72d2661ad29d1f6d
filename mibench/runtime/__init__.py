"""What runs fast, survives and tells: devices, files, randomness. It knows nothing of inversion."""
