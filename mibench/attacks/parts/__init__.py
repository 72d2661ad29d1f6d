"""The parts every attack is made of: objectives, latents, views, search, selection."""
