"""What both stages of the training share: the recipe, the loop that resumes, the optimizer, the pictures.

In: a recipe.
Out: checkpoints, curves.
Uses: eval.train.scenes.
"""
