"""Stage 07: vision towers, the vision-language model, its data, its tasks and its trainings.

images, towers, views -> vlm -> vlm_training -> experiments     from pixels to trained models
data -> tasks -> training_data                                       from cards to questions
answering -> scoring -> recipes                                      from answers to verdicts
processor, hf, lmms, terminal                                        how users run a saved model
"""
