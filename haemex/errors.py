"""The one way in which bad input is refused."""


class InputError(Exception):
    """Something the user gave cannot be used.

    Raised with a sentence a user can act on; `haemex.logs.log_to` adds the patient and prints it as one line instead
    of a traceback.

    Parameters
    ----------
    problem : str
        What is wrong, with the numbers that show it. No patient identity.
    action : str
        What to do about it.
    file : path-like, optional
        The file or folder concerned.
    """

    def __init__(self, problem, action, file=None):
        self.problem = problem.rstrip(".")
        self.action = action.rstrip(".")
        # A name in another encoding than UTF-8, as old discs hold them, would break whatever is written of it.
        self.file = None if file is None else str(file).encode(errors="replace").decode()
        super().__init__(str(self))

    def __str__(self):
        where = f"{self.file}: " if self.file else ""
        return f"{where}{self.problem}. {self.action[:1].upper()}{self.action[1:]}."

    def __reduce__(self):
        return type(self), (self.problem, self.action, self.file)
