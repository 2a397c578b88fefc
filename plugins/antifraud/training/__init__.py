"""The parts that training alone needs: reading the data folder, made-up user agents, measuring, and the model card."""
