"""What is special about training the bundled checkpoint; the training itself is in train_recall.py."""
