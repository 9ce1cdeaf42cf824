// Tells callgrind from when to when to count, and to write down what it has counted under a name.
#include <valgrind/callgrind.h>

void begin(void) {
  CALLGRIND_START_INSTRUMENTATION;
  CALLGRIND_ZERO_STATS;
}

void end(const char* name) { CALLGRIND_DUMP_STATS_AT(name); }
