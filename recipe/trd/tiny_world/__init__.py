"""The tiny world: arithmetic chains, a teacher and a warm student, built from nothing in minutes on two CPU cores."""
