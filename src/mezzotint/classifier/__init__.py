"""The judge: a classifier, trained on the same pictures as the generators that it judges."""
