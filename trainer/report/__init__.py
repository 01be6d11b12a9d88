"""Pictures for people: contact sheets and charts."""
