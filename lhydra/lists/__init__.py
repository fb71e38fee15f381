"""What turns scored candidates into a list: pure functions over arrays, from scores and labels to an order."""
