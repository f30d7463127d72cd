/* The victim, with three children of its kind. */
#define CHILDREN 3
#include "victim.c"
