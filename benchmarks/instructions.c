// Starts and stops counting in callgrind, and writes the count under a name.
#include <valgrind/callgrind.h>

void begin(void) {
  CALLGRIND_START_INSTRUMENTATION;
  CALLGRIND_ZERO_STATS;
}

void end(const char* name) { CALLGRIND_DUMP_STATS_AT(name); }
