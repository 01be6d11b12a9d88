"""What somebody who runs the bot does from the command line, and what their monitoring reads."""
