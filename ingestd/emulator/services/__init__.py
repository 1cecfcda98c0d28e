"""What clients ask for, one service a file: each reads its request, asks the storage, and answers."""
