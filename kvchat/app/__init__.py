"""The program: command line, chat, rendering. Everything that a person sees."""
