/* The victim, with handlers for the signals that are ignored by default. */
#define CATCH
#include "victim.c"
