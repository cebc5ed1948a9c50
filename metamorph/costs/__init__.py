"""What a step costs, by arithmetic: operations, memory, bytes sent, seconds."""
