"""What a hub's endpoints take and send, told to others: AsyncAPI, TypeScript, what has changed."""
