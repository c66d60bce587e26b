"""Data: the shapes laboratory, folders of captioned pictures, words to numbers, augmentation."""
