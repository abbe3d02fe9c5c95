# Finds what compiles and links the CUDA sources, the *.cu files and everything else in folders called cuda: nvcc, the headers and
# the runtime that torch itself uses.
#
# CMake's own CUDA language is not used: it demands a toolkit that links programs, which NVIDIA's wheels on PyPI are not. Each
# source is compiled by nvcc to an object, and the C++ compiler links.
#
# In:  SWSL_CUDA, SWSL_TORCH_PREFIX, SWSL_LINKS_CUDA (SwslTorch.cmake);
#      SWSL_NVCC, nvcc's path: empty: look for it, OFF: do without;
#      SWSL_CUDA_ARCHITECTURES, such as "80;90": empty: those of the cards in this machine, or else all from 75 to 90.
# Out: SWSL_CUDA_KERNELS (0 or 1); then swsl::cudart, SWSL_CUDART_DIR, and swsl_compile_cuda;
#      SWSL_CUDA_LEFT_OUT, why not, "" where torch has no CUDA to begin with;
#      SWSL_NVJPEG (0 or 1: is its header there); then swsl::nvjpeg, and SWSL_NVJPEG_DIR, where the library is, "" if it is nowhere.

set(SWSL_NVCC "" CACHE STRING "nvcc's path; empty: look for it, OFF: build without CUDA kernels")
set(SWSL_CUDA_ARCHITECTURES "" CACHE STRING "Compute capabilities without the dot, such as 80;90; empty: this machine's, or 75 to 90")
set(SWSL_CUDA_KERNELS 0)
set(SWSL_NVJPEG 0)
set(SWSL_NVJPEG_DIR "")
set(SWSL_CUDA_LEFT_OUT "")

# In `why`, what is missing; "" if nothing is.
function(_swsl_find_cuda why)
  set(${why} "" PARENT_SCOPE)
  get_filename_component(site "${SWSL_TORCH_PREFIX}/.." REALPATH)
  file(GLOB wheels LIST_DIRECTORIES true "${site}/nvidia/*")
  set(nvcc_wheels "nvidia-cuda-nvcc, nvidia-nvvm, nvidia-cuda-crt and nvidia-cuda-cccl from PyPI, all of one CUDA release")
  set(nvcc "${SWSL_NVCC}")
  if(NOT nvcc)
    list(TRANSFORM wheels APPEND "/bin" OUTPUT_VARIABLE wheel_folders)
    find_program(nvcc_found nvcc NO_CACHE
      HINTS ENV CUDACXX ENV CUDA_HOME ENV CUDA_PATH ENV CUDAToolkit_ROOT ${wheel_folders} PATH_SUFFIXES bin
      PATHS /usr/local/cuda/bin /opt/cuda/bin)
    if(EXISTS "$ENV{CUDACXX}")
      set(nvcc_found "$ENV{CUDACXX}")
    endif()
    if(NOT nvcc_found)
      set(${why} "no nvcc (set CUDA_HOME or -DSWSL_NVCC=/path/to/nvcc, or install ${nvcc_wheels})" PARENT_SCOPE)
      return()
    endif()
    set(nvcc "${nvcc_found}")
  endif()

  # "dryrun" prints where the toolkit is, also for an nvcc that is a script around another.
  set(trial "${CMAKE_CURRENT_BINARY_DIR}/swsl_trial.cu")
  file(WRITE "${trial}" "#include <cuda_runtime.h>\n#include <mma.h>\n__global__ void kernel() {}\n")
  execute_process(COMMAND "${nvcc}" -dryrun -c "${trial}" ERROR_VARIABLE plan OUTPUT_VARIABLE plan2 RESULT_VARIABLE failed)
  execute_process(COMMAND "${nvcc}" --version OUTPUT_VARIABLE version ERROR_QUIET)
  if(NOT "${plan}${plan2}" MATCHES "TOP=([^\n]+)" OR NOT version MATCHES "release ([0-9]+)\\.([0-9]+)")
    set(${why} "${nvcc} does not say which toolkit it belongs to" PARENT_SCOPE)
    return()
  endif()
  string(REGEX MATCH "release ([0-9]+)\\.([0-9]+)" _ "${version}")
  set(major ${CMAKE_MATCH_1})
  set(release ${CMAKE_MATCH_1}.${CMAKE_MATCH_2})
  string(REGEX MATCH "TOP=([^\n]+)" _ "${plan}${plan2}")
  get_filename_component(toolkit "${CMAKE_MATCH_1}" REALPATH)

  if(EXISTS "${SWSL_TORCH_PREFIX}/version.py")
    file(STRINGS "${SWSL_TORCH_PREFIX}/version.py" torch_cuda REGEX "^cuda.*'[0-9]+\\.[0-9]+'")
    if(torch_cuda MATCHES "'([0-9]+)\\.[0-9]+'" AND NOT CMAKE_MATCH_1 EQUAL major)
      set(${why} "${nvcc} is of CUDA ${release}, but torch was built with CUDA ${CMAKE_MATCH_1}: their major versions must agree" PARENT_SCOPE)
      return()
    endif()
  endif()

  # Where torch brings its own headers and runtime, those; its usual wheels lack the folder crt, without which none compile.
  set(include_folders ${wheels})
  list(TRANSFORM include_folders APPEND "/include")
  set(library_folders ${wheels})
  list(TRANSFORM library_folders APPEND "/lib")
  find_path(include crt/host_defines.h NO_CACHE NO_DEFAULT_PATH
    PATHS ${include_folders} "${toolkit}/include" "${toolkit}/targets/x86_64-linux/include")
  find_file(library NAMES libcudart.so.${major} libcudart.so.${major}.0 NO_CACHE NO_DEFAULT_PATH
    PATHS ${library_folders} "${SWSL_TORCH_PREFIX}/lib" "${toolkit}/lib64" "${toolkit}/lib" "${toolkit}/targets/x86_64-linux/lib")
  if(NOT include OR NOT library)
    set(${why} "no crt/host_defines.h or no libcudart.so.${major}, neither beside torch nor in ${toolkit}" PARENT_SCOPE)
    return()
  endif()
  # What torch's own headers include, which a toolkit may lack and torch's wheels bring.
  foreach(header cublas_v2.h cusparse.h cusolverDn.h)
    find_path(folder ${header} NO_CACHE NO_DEFAULT_PATH
      PATHS ${include} "${toolkit}/include" "${toolkit}/targets/x86_64-linux/include" ${include_folders})
    if(NOT folder)
      set(${why} "no ${header}, neither beside torch nor in ${toolkit}" PARENT_SCOPE)
      return()
    endif()
    list(APPEND include "${folder}")
    unset(folder)
  endforeach()
  list(REMOVE_DUPLICATES include)

  execute_process(COMMAND "${nvcc}" -std=c++20 -ccbin "${CMAKE_CXX_COMPILER}" -c "${trial}" -o "${trial}.o"
    OUTPUT_VARIABLE said ERROR_VARIABLE said RESULT_VARIABLE failed)
  if(failed)
    string(REGEX MATCH "[^\n]*error[^\n]*" said "${said}")
    set(${why} "${nvcc} does not compile with ${CMAKE_CXX_COMPILER}: ${said} (NVIDIA's wheels: ${nvcc_wheels})" PARENT_SCOPE)
    return()
  endif()
  set(_swsl_nvcc "${nvcc}" PARENT_SCOPE)
  set(_swsl_cuda_release "${release}" PARENT_SCOPE)
  set(_swsl_cuda_include "${include}" PARENT_SCOPE)
  set(_swsl_cudart "${library}" PARENT_SCOPE)

  # Of CUDA's major version. The header is enough: who wants nvJPEG may install the library later, and who does not needs none.
  set(places ${wheels} "${toolkit}" "${toolkit}/targets/x86_64-linux")
  foreach(place IN LISTS places)
    if(NOT EXISTS "${place}/include/nvjpeg.h")
      continue()
    endif()
    file(STRINGS "${place}/include/nvjpeg.h" nvjpeg_version REGEX "^#define NVJPEG_VER_MAJOR ${major}$")
    if(nvjpeg_version)
      set(_swsl_nvjpeg_include "${place}/include" PARENT_SCOPE)
      break()
    endif()
  endforeach()
  find_file(nvjpeg NAMES libnvjpeg.so.${major} NO_CACHE NO_DEFAULT_PATH
    PATHS ${library_folders} "${toolkit}/lib64" "${toolkit}/lib" "${toolkit}/targets/x86_64-linux/lib")
  if(nvjpeg)
    get_filename_component(folder "${nvjpeg}" DIRECTORY)
    set(SWSL_NVJPEG_DIR "${folder}" PARENT_SCOPE)
  endif()
endfunction()

# Machine code for each architecture, and for later ones PTX of the last.
function(_swsl_architectures out)
  set(wanted "${SWSL_CUDA_ARCHITECTURES}")
  if(NOT wanted)
    execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
      OUTPUT_VARIABLE present ERROR_QUIET RESULT_VARIABLE failed)
    if(NOT failed)
      string(REGEX MATCHALL "[0-9]+\\.[0-9]+" wanted "${present}")
      list(TRANSFORM wanted REPLACE "\\." "")
    endif()
  endif()
  if(NOT wanted)
    set(wanted 75 80 86 89 90)
  endif()
  list(REMOVE_DUPLICATES wanted)
  list(SORT wanted COMPARE NATURAL)
  set(flags "")
  foreach(architecture IN LISTS wanted)
    list(APPEND flags "-gencode=arch=compute_${architecture},code=sm_${architecture}")
  endforeach()
  list(GET wanted -1 last)
  list(APPEND flags "-gencode=arch=compute_${last},code=compute_${last}")
  set(${out} "${flags}" PARENT_SCOPE)
  set(_swsl_cuda_shown "${wanted}" PARENT_SCOPE)
endfunction()

# swsl_compile_cuda(objects SOURCES … INCLUDES …): in `objects`, what becomes of the sources.
function(swsl_compile_cuda out)
  cmake_parse_arguments(arg "" "" "SOURCES;INCLUDES" ${ARGN})
  _swsl_architectures(architectures)
  message(STATUS "swsl: CUDA kernels by ${_swsl_nvcc} (${_swsl_cuda_release}) for ${_swsl_cuda_shown}")
  list(TRANSFORM arg_INCLUDES PREPEND "-I")
  set(objects "")
  foreach(source IN LISTS arg_SOURCES)
    file(RELATIVE_PATH name "${CMAKE_CURRENT_SOURCE_DIR}" "${source}")
    set(object "${CMAKE_CURRENT_BINARY_DIR}/cuda-objects/${name}.o")
    get_filename_component(folder "${object}" DIRECTORY)
    file(MAKE_DIRECTORY "${folder}")
    add_custom_command(OUTPUT "${object}"
      COMMAND "${_swsl_nvcc}" -c "${source}" -o "${object}" -MD -MF "${object}.d" -std=c++20 -O3 -lineinfo ${architectures}
              -ccbin "${CMAKE_CXX_COMPILER}" -Xcompiler=-fPIC,-fvisibility=hidden,-Wall ${arg_INCLUDES}
      DEPENDS "${source}" DEPFILE "${object}.d" COMMENT "Compiling ${name}" VERBATIM)
    list(APPEND objects "${object}")
  endforeach()
  set(${out} "${objects}" PARENT_SCOPE)
endfunction()

if(SWSL_LINKS_CUDA)
  set(_swsl_missing "")
  if(SWSL_NVCC MATCHES "^(OFF|NO|0|FALSE)$")
    set(_swsl_missing "SWSL_NVCC is OFF")
  else()
    _swsl_find_cuda(_swsl_missing)
  endif()
  if(_swsl_missing STREQUAL "")
    set(SWSL_CUDA_KERNELS 1)
    get_filename_component(SWSL_CUDART_DIR "${_swsl_cudart}" DIRECTORY)
    add_library(swsl::cudart INTERFACE IMPORTED)
    target_include_directories(swsl::cudart SYSTEM INTERFACE ${_swsl_cuda_include})
    target_link_libraries(swsl::cudart INTERFACE "${_swsl_cudart}")
    if(_swsl_nvjpeg_include)
      set(SWSL_NVJPEG 1)
      add_library(swsl::nvjpeg INTERFACE IMPORTED)
      target_include_directories(swsl::nvjpeg SYSTEM INTERFACE "${_swsl_nvjpeg_include}")
      target_link_libraries(swsl::nvjpeg INTERFACE ${CMAKE_DL_LIBS})
      message(STATUS "swsl: nvJPEG by ${_swsl_nvjpeg_include}/nvjpeg.h; its library is looked for at run time")
    else()
      message(STATUS "swsl: without nvJPEG: no nvjpeg.h of CUDA ${_swsl_cuda_release} (PyPI: nvidia-nvjpeg); the CPU decodes every JPEG")
    endif()
  elseif(SWSL_CUDA STREQUAL "ON")
    message(FATAL_ERROR "SWSL_CUDA=ON: ${_swsl_missing}")
  else()
    set(SWSL_CUDA_LEFT_OUT "CUDA kernels: ${_swsl_missing}")
    message(STATUS "swsl: without CUDA kernels: ${_swsl_missing}; CUDA devices run TorchScript, images are prepared on the CPU")
  endif()
endif()
