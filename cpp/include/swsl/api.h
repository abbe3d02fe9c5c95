// What libswsl exports: the library is built with hidden visibility, so that a symbol is public on purpose.
#pragma once

#define SWSL_API __attribute__((visibility("default")))
