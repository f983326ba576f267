"""Answers that go round in circles: one stretch of tokens, again and again."""

LONGEST = 400  # tokens of a stretch
LEAST = 128  # tokens that only repeat: a row of noughts or of table cells is no circle yet
TIMES = 3  # a long stretch is said again so often, after the first time
PACE = 8  # tokens between two looks


class Repetition:
    """Takes an answer's tokens one by one and notices when they only repeat.

    Greedy decoding that has said the same stretch a few times says it for ever: the stretch itself
    makes its next repetition likelier. Only exact repetition counts.
    """

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self.kept = 0  # tokens before the first that only repeats, once there is a repetition
        self.period = 0  # tokens of the stretch

    def push(self, token: int) -> bool:
        """Whether the newest tokens are one stretch of at most `LONGEST` tokens, repeated for
        `LEAST` tokens and `TIMES` times."""
        tokens = self._tokens
        tokens.append(token)
        count = len(tokens)
        if count % PACE:
            return False
        for period in range(1, min(LONGEST, count - LEAST) + 1):
            need = max(LEAST, TIMES * period)
            if tokens[-1 - period] != token or count < need + period:
                continue
            if tokens[count - need :] == tokens[count - need - period : count - period]:
                begin = count - need
                while begin > period and tokens[begin - 1] == tokens[begin - 1 - period]:
                    begin -= 1
                self.kept, self.period = begin, period
                return True
        return False
