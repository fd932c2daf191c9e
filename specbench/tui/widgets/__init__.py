"""What the screens are made of: line-API widgets that draw segments. Nothing here reads markup."""
